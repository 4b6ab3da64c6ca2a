"""An ordinary FastAPI app: `uvicorn fastapi_app:app`. It knows nothing of a proxy."""

import asyncio
import hashlib
import itertools
import os

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

app = FastAPI()
instance = os.environ.get("INSTANCE", "one")
streams = set()
waiting: dict[str, list[asyncio.Future]] = {}
ends = []
numbers = itertools.count()


@app.get("/")
async def who():
    return {"instance": instance}


@app.websocket("/ws/{room}")
async def echo(websocket: WebSocket, room: str):
    if room == "closed":
        await websocket.close(4403)
        return
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    await websocket.send_json({"room": room, "instance": instance, "query": dict(websocket.query_params), "client": websocket.headers["x-forwarded-for"]})
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            if message.get("text") == "please close":
                await websocket.close(4001, "as you asked")
                return
            await websocket.send({**message, "type": "websocket.send"})
    except WebSocketDisconnect as end:
        ends.append([room, end.code, end.reason])


@app.get("/ends")
async def seen_ends():
    return ends


@app.get("/events")
async def events(request: Request, pause: float = 0.2, size: int = 20):
    """Server-sent events: one at once, then one after each pause, until the client leaves."""
    number = next(numbers)
    last = int(request.headers.get("last-event-id", "-1"))

    async def stream():
        streams.add(number)
        try:
            for n in itertools.count(last + 1):
                yield f"id: {n}\nevent: tick\ndata: {'x' * size}\n\n"
                await asyncio.sleep(pause)
        finally:
            streams.discard(number)

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@app.get("/streams")
async def open_streams():
    return len(streams)


@app.get("/poll/{channel}")
async def poll(channel: str, hold: float = 30):
    """Long polling: held until there is something, or for so long."""
    future = asyncio.get_running_loop().create_future()
    waiting.setdefault(channel, []).append(future)
    try:
        return {"data": await asyncio.wait_for(future, hold)}
    except TimeoutError:
        return {"data": None}
    finally:
        waiting[channel].remove(future)


@app.get("/waiting/{channel}")
async def how_many_wait(channel: str):
    return len(waiting.get(channel, []))


@app.post("/publish/{channel}")
async def publish(channel: str, request: Request):
    data = (await request.body()).decode()
    for future in waiting.get(channel, []):
        if not future.done():
            future.set_result(data)
    return {"published": data}


@app.post("/upload")
async def upload(request: Request):
    """Read as it comes."""
    digest, size, pieces = hashlib.sha256(), 0, 0
    async for chunk in request.stream():
        digest.update(chunk)
        size += len(chunk)
        pieces += 1
    return {"size": size, "sha256": digest.hexdigest(), "pieces": pieces}
