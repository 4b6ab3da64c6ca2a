#!/usr/bin/env python3
"""A slow link: what comes in one end goes out the other end later. The kernel here has no netem.

    tests/benches/relay.py LISTEN TARGET MILLISECONDS       each way
"""

import asyncio
import sys

# What may be under way in one direction; over it nothing more is read, as on a real link.
UNDER_WAY = 4 << 20


async def carry(reader, writer, seconds):
    """Bytes in order, each `seconds` after it came."""
    loop, queue, held = asyncio.get_running_loop(), asyncio.Queue(), 0
    room = asyncio.Event()
    room.set()

    async def read():
        nonlocal held
        try:
            while data := await reader.read(65536):
                held += len(data)
                queue.put_nowait((loop.time() + seconds, data))
                if held > UNDER_WAY:
                    room.clear()
                    await room.wait()
        except OSError:
            pass
        queue.put_nowait((loop.time() + seconds, b""))

    reading = asyncio.create_task(read())
    try:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0, due - loop.time()))
            if not data:
                return
            writer.write(data)
            await writer.drain()
            held -= len(data)
            if held <= UNDER_WAY:
                room.set()
    except OSError:
        pass
    finally:
        reading.cancel()
        writer.close()


async def main(listen, target, seconds):
    async def accepted(reader, writer):
        try:
            there_reader, there_writer = await asyncio.wait_for(asyncio.open_connection(*target.rsplit(":", 1)), 5)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        await asyncio.gather(carry(reader, there_writer, seconds), carry(there_reader, writer, seconds))

    host, port = listen.rsplit(":", 1)
    server = await asyncio.start_server(accepted, host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000))
