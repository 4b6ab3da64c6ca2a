"""Unchanged Python apps behind the proxy (conf/app.toml): FastAPI on uvicorn, Django Channels on daphne.

Started by tests/tests/clients.rs.
"""

import asyncio
import hashlib
import json
import os
import time
import unittest

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

FASTAPI = os.environ["WEIR_FASTAPI"]
CHANNELS = os.environ["WEIR_CHANNELS"]
DEADLINE = 20


async def until(what, ask):
    """Asks again until the answer is true."""
    start = time.monotonic()
    while not (answer := await ask()):
        if time.monotonic() - start > DEADLINE:
            raise AssertionError(f"{what}: not within {DEADLINE} s")
        await asyncio.sleep(0.02)
    return answer


def client(base, **options):
    return httpx.AsyncClient(base_url=base, timeout=DEADLINE + 15, **options)


def ws(base, path, **options):
    return connect(base.replace("http", "ws") + path, open_timeout=DEADLINE, close_timeout=DEADLINE, **options)


async def receive(socket):
    async with asyncio.timeout(DEADLINE):
        return await socket.recv()


class WebSockets(unittest.IsolatedAsyncioTestCase):
    async def test_text_binary_and_fragments_are_echoed(self):
        async with ws(FASTAPI, "/ws/lobby?q=1", subprotocols=["chat.v1"]) as socket:
            hello = json.loads(await receive(socket))
            self.assertEqual((hello["room"], hello["query"], hello["client"]), ("lobby", {"q": "1"}, "127.0.0.1"))
            self.assertEqual(socket.subprotocol, "chat.v1")
            for sent in ["text ü 💧", b"\x00\xff" * 1000, "y" * 70_000, os.urandom(900_000), ""]:
                await socket.send(sent)
                self.assertEqual(await receive(socket), sent)
            await socket.send(part for part in ["frag", "men", "ted"])
            self.assertEqual(await receive(socket), "fragmented")

    async def test_pings_pass(self):
        async with ws(FASTAPI, "/ws/lobby") as socket:
            async with asyncio.timeout(DEADLINE):
                self.assertGreater(await (await socket.ping()), 0)

    async def test_close_codes_pass_both_ways(self):
        async with ws(FASTAPI, "/ws/lobby") as socket:
            await receive(socket)
            await socket.send("please close")
            with self.assertRaises(ConnectionClosed) as end:
                await receive(socket)
            self.assertEqual((end.exception.rcvd.code, end.exception.rcvd.reason), (4001, "as you asked"))
        room = f"room-{os.getpid()}"
        async with ws(FASTAPI, f"/ws/{room}") as socket:
            await receive(socket)
            await socket.close(4242, "enough")
        async with client(FASTAPI) as http:
            async def seen():
                return [end for end in (await http.get("/ends")).json() if end[0] == room]
            self.assertEqual(await until("the app sees the close", seen), [[room, 4242, "enough"]])

    async def test_what_the_app_refuses_is_refused(self):
        with self.assertRaises(InvalidStatus) as refused:
            async with ws(FASTAPI, "/ws/closed"):
                pass
        self.assertEqual(refused.exception.response.status_code, 403)

    async def test_a_hundred_at_once(self):
        async def one(n):
            async with ws(FASTAPI, f"/ws/{n}") as socket:
                await receive(socket)
                for m in range(20):
                    await socket.send(f"{n} {m}")
                for m in range(20):
                    self.assertEqual(await receive(socket), f"{n} {m}")
        await asyncio.gather(*(one(n) for n in range(100)))


class Streams(unittest.IsolatedAsyncioTestCase):
    async def test_events_arrive_when_they_are_sent(self):
        async with client(FASTAPI) as http, http.stream("GET", "/events?pause=0.5") as response:
            self.assertTrue(response.headers["content-type"].startswith("text/event-stream"))
            start, arrived = time.monotonic(), []
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    arrived.append(time.monotonic() - start)
                    if len(arrived) == 4:
                        break
        self.assertLess(arrived[0], 0.4, "the first event was held back")
        for before, after in zip(arrived, arrived[1:]):
            self.assertGreater(after - before, 0.2, f"events came in one piece: {arrived}")

    async def test_a_client_that_leaves_ends_its_stream_in_the_app(self):
        async with client(FASTAPI) as http:
            async def open_streams():
                return (await http.get("/streams")).json()
            async def none():
                return await open_streams() == 0
            await until("the streams of other tests end", none)
            streams = [http.stream("GET", "/events") for _ in range(10)]
            responses = [await stream.__aenter__() for stream in streams]
            self.assertEqual([r.status_code for r in responses], [200] * 10)
            self.assertEqual(await open_streams(), 10)
            for stream in streams:
                await stream.__aexit__(None, None, None)
            await until("the app learns that they left", none)

    async def test_a_stream_is_taken_up_where_it_was_left(self):
        async with client(FASTAPI) as http:
            async with http.stream("GET", "/events?pause=0", headers={"Last-Event-ID": "41"}) as response:
                async for line in response.aiter_lines():
                    self.assertEqual(line, "id: 42")
                    break

    async def test_a_reader_that_pauses_gets_all_of_it(self):
        async with client(FASTAPI) as http, http.stream("GET", "/events?pause=0&size=20000") as response:
            expected = 0
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    self.assertEqual(line, f"id: {expected}")
                    expected += 1
                    if expected % 100 == 0:
                        await asyncio.sleep(0.2)
                    if expected == 500:
                        break


class LongPolling(unittest.IsolatedAsyncioTestCase):
    async def test_many_wait_and_all_are_told_at_once(self):
        channel = f"news-{os.getpid()}"
        async with client(FASTAPI, limits=httpx.Limits(max_connections=60)) as http:
            polls = [asyncio.create_task(http.get(f"/poll/{channel}")) for _ in range(40)]
            async def all_wait():
                return (await http.get(f"/waiting/{channel}")).json() == 40
            await until("all wait", all_wait)
            start = time.monotonic()
            await http.post(f"/publish/{channel}", content="it is here")
            answers = await asyncio.gather(*polls)
            self.assertEqual([a.json() for a in answers], [{"data": "it is here"}] * 40)
            self.assertLess(time.monotonic() - start, 5)

    async def test_a_poll_that_is_held_for_long_comes_back(self):
        async with client(FASTAPI) as http:
            answer = await http.get("/poll/nothing-ever-happens?hold=15")
            self.assertEqual((answer.status_code, answer.json()), (200, {"data": None}))

    async def test_a_poll_that_is_given_up_leaves_others_alone(self):
        channel = f"given-up-{os.getpid()}"
        async with client(FASTAPI) as http:
            with self.assertRaises(httpx.ReadTimeout):
                await http.get(f"/poll/{channel}", timeout=0.3)
            poll = asyncio.create_task(http.get(f"/poll/{channel}"))
            async def waits():
                return (await http.get(f"/waiting/{channel}")).json() >= 1
            await until("it waits", waits)
            await asyncio.sleep(0.2)
            await http.post(f"/publish/{channel}", content="x")
            async with asyncio.timeout(DEADLINE):
                self.assertEqual((await poll).json(), {"data": "x"})


class Uploads(unittest.IsolatedAsyncioTestCase):
    async def test_an_upload_reaches_the_app_as_it_is_sent(self):
        data = os.urandom(3 << 20)
        async def slowly():
            for at in range(0, len(data), 1 << 20):
                yield data[at:at + (1 << 20)]
                await asyncio.sleep(0.1)
        async with client(FASTAPI) as http:
            answer = (await http.post("/upload", content=slowly())).json()
        self.assertEqual((answer["size"], answer["sha256"]), (len(data), hashlib.sha256(data).hexdigest()))
        self.assertGreaterEqual(answer["pieces"], 3)


class Channels(unittest.IsolatedAsyncioTestCase):
    async def test_a_room_with_sessions(self):
        async with client(CHANNELS) as http:
            login = await http.get("/login/ann")
            # The app knows itself by the name that the client asked for.
            self.assertEqual(login.json(), {"host": CHANNELS.removeprefix("http://"), "name": "ann"})
            cookie = {"Cookie": f"sessionid={login.cookies['sessionid']}"}
            origin = "http://127.0.0.1"
            async with ws(CHANNELS, "/room/kitchen", origin=origin, additional_headers=cookie) as ann, \
                    ws(CHANNELS, "/room/kitchen", origin=origin) as bob:
                await ann.send(json.dumps({"text": "dinner"}))
                for socket in (ann, bob):
                    self.assertEqual(json.loads(await receive(socket)), {"who": "ann", "text": "dinner"})
                self.assertEqual((await http.get("/say/kitchen")).status_code, 200)
                for socket in (ann, bob):
                    self.assertEqual(json.loads(await receive(socket)), {"who": "server", "text": "hello"})
                await bob.close(4321, "bye")
                self.assertEqual(json.loads(await receive(ann)), {"who": "nobody", "text": "left with 4321"})

    async def test_the_apps_own_look_at_origins_still_holds(self):
        with self.assertRaises(InvalidStatus) as refused:
            async with ws(CHANNELS, "/room/kitchen", origin="https://evil.example.com"):
                pass
        self.assertEqual(refused.exception.response.status_code, 403)

    async def test_a_streamed_answer(self):
        async with client(CHANNELS) as http:
            answer = await http.get("/numbers")
            self.assertEqual(answer.text, "".join(f"{n}\n" for n in range(1000)))


if __name__ == "__main__":
    unittest.main()
