"""The published Python SDK against a running server. Started by tests/tests/clients.rs."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
import unittest
import urllib.request
import uuid

from centrifuge import (
    Client,
    ClientEventHandler,
    ClientState,
    ReplyError,
    StreamPosition,
    SubscriptionEventHandler,
)

WS = os.environ["WEIR_WS"]
API = os.environ["WEIR_API"]
API_KEY = os.environ["WEIR_API_KEY"]
HMAC = os.environ["WEIR_HMAC"]

# Every wait ends: long enough for a loaded machine, short enough to say what was waited for.
DEADLINE = 15.0


def unique(prefix):
    return prefix + uuid.uuid4().hex[:12]


def jwt(secret=HMAC, **claims):
    def part(raw):
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = head + b"." + part(json.dumps(claims).encode())
    return (body + b"." + part(hmac.new(secret.encode(), body, hashlib.sha256).digest())).decode()


def in_seconds(seconds):
    return int(time.time()) + seconds


async def api(method, **request):
    """Calls the server HTTP API; an error of its own fails the test."""

    def call():
        http = urllib.request.Request(
            f"{API}/{method}",
            data=json.dumps(request).encode(),
            headers={"X-API-Key": API_KEY, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(http, timeout=DEADLINE) as response:
            return json.load(response)

    answer = await asyncio.to_thread(call)
    if "error" in answer:
        raise AssertionError(f"api {method}: {answer}")
    return answer["result"]


class Events:
    """What happened, in order, and a wait for more of it."""

    def __init__(self):
        self.seen = []
        self._more = asyncio.Event()

    def add(self, name, ctx):
        self.seen.append((name, ctx))
        self._more.set()

    def named(self, name):
        return [ctx for n, ctx in self.seen if n == name]

    async def count(self, name, n):
        """The contexts of this name, as soon as there are `n`."""

        async def enough():
            while len(self.named(name)) < n:
                self._more.clear()
                await self._more.wait()

        try:
            await asyncio.wait_for(enough(), DEADLINE)
        except asyncio.TimeoutError:
            raise AssertionError(f"fewer than {n} '{name}' events within {DEADLINE} s: {self.seen}") from None
        return self.named(name)


class OnClient(ClientEventHandler, Events):
    def __init__(self):
        Events.__init__(self)

    async def on_connecting(self, ctx):
        self.add("connecting", ctx)

    async def on_connected(self, ctx):
        self.add("connected", ctx)

    async def on_disconnected(self, ctx):
        self.add("disconnected", ctx)

    async def on_subscribed(self, ctx):
        self.add("subscribed", ctx)

    async def on_unsubscribed(self, ctx):
        self.add("unsubscribed", ctx)

    async def on_publication(self, ctx):
        self.add("publication", ctx)


class OnSubscription(SubscriptionEventHandler, Events):
    def __init__(self):
        Events.__init__(self)

    async def on_subscribed(self, ctx):
        self.add("subscribed", ctx)

    async def on_unsubscribed(self, ctx):
        self.add("unsubscribed", ctx)

    async def on_publication(self, ctx):
        self.add("publication", ctx)

    async def on_join(self, ctx):
        self.add("join", ctx)

    async def on_leave(self, ctx):
        self.add("leave", ctx)


class Relay:
    """A TCP link in front of the server that can be cut: existing connections end, new ones too, until healed."""

    def __init__(self):
        host, port = WS.split("/")[2].split(":")
        self._target = (host, int(port))
        self._writers = set()
        self._tasks = set()
        self._up = True

    async def start(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return WS.replace(":".join(map(str, self._target)), f"127.0.0.1:{port}")

    def _accept(self, reader, writer):
        if not self._up:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader, writer):
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, upstream_writer}

        async def pump(source, sink):
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            sink.close()

        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))
        self._writers -= {writer, upstream_writer}

    def cut(self):
        self._up = False
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self):
        self._up = True

    async def close(self):
        self.cut()
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Suite:
    """Each case runs for JSON; a subclass says what differs."""

    protobuf = False

    async def asyncSetUp(self):
        self.clients = []

    async def asyncTearDown(self):
        for client in self.clients:
            await asyncio.wait_for(client.disconnect(), DEADLINE)

    def data(self, value):
        return json.dumps(value).encode() if self.protobuf else value

    def value(self, data):
        return json.loads(data) if self.protobuf else data

    def client(self, address=WS, **options):
        events = OnClient()
        client = Client(
            address, events=events, use_protobuf=self.protobuf, proxy=None,
            min_reconnect_delay=0.02, max_reconnect_delay=0.2, **options,
        )
        self.clients.append(client)
        return client, events

    async def connected(self, address=WS, **options):
        client, events = self.client(address, **options)
        await client.connect()
        await events.count("connected", 1)
        return client, events

    async def subscribed(self, client, channel, **options):
        events = OnSubscription()
        sub = client.new_subscription(channel, events=events, min_resubscribe_delay=0.02, **options)
        await sub.subscribe()
        await events.count("subscribed", 1)
        return sub, events

    async def fence(self, client):
        """Answers of one connection come in order: after this, what was sent before has been handled."""
        with self.assertRaises(ReplyError) as refused:
            await client.rpc("no-such-method", self.data({}))
        self.assertEqual(refused.exception.code, 108)

    async def test_anonymous_connects(self):
        _, events = await self.connected()
        self.assertEqual(len(events.named("connected")[0].client), 36)

    async def test_token_gives_user_and_info(self):
        client, _ = await self.connected(token=jwt(sub="ann", exp=in_seconds(600), info={"name": "Ann"}))
        sub, _ = await self.subscribed(client, unique("chat:"))
        [info] = (await sub.presence()).clients.values()
        self.assertEqual(info.user, "ann")
        self.assertEqual(self.value(info.conn_info), {"name": "Ann"})

    async def test_bad_token_ends_for_good(self):
        client, events = self.client(token=jwt(secret="another secret, just as long as it..", sub="eve"))
        await client.connect()
        [ctx] = await events.count("disconnected", 1)
        self.assertEqual(ctx.code, 3500)

    async def test_expired_token_is_fetched_again(self):
        fetched = []

        async def get_token():
            fetched.append(1)
            return jwt(sub="ann", exp=in_seconds(600))

        await self.connected(token=jwt(sub="ann", exp=in_seconds(-60)), get_token=get_token)
        self.assertEqual(len(fetched), 1)

    async def test_short_token_is_refreshed_on_the_same_connection(self):
        fetched = Events()

        async def get_token():
            fetched.add("token", None)
            return jwt(sub="ann", exp=in_seconds(2))

        client, events = await self.connected(token=jwt(sub="ann", exp=in_seconds(2)), get_token=get_token)
        await fetched.count("token", 2)
        await self.fence(client)
        self.assertEqual([name for name, _ in events.seen], ["connecting", "connected"])

    async def test_publish_by_client_and_api_in_one_stream(self):
        channel = unique("chat:")
        client, events = await self.connected(token=jwt(sub="ann"))
        sub, got = await self.subscribed(client, channel)
        at = got.named("subscribed")[0]
        self.assertTrue(at.recoverable and at.positioned)
        await sub.publish(self.data({"n": 1, "text": "zwölf 💧"}))
        result = await api("publish", channel=channel, data={"n": 2})
        first, second = [ctx.pub for ctx in await got.count("publication", 2)]
        self.assertEqual((first.offset, second.offset), (1, 2))
        self.assertEqual(self.value(first.data), {"n": 1, "text": "zwölf 💧"})
        self.assertEqual(first.info.user, "ann")
        self.assertEqual(first.info.client, events.named("connected")[0].client)
        self.assertIsNone(second.info)
        self.assertEqual((result["offset"], result["epoch"]), (2, at.stream_position.epoch))

    async def test_many_subscriptions_before_connect(self):
        client, events = self.client()
        channels = [unique("chat:") for _ in range(60)]
        got = []
        for channel in channels:
            got.append(OnSubscription())
            await client.new_subscription(channel, events=got[-1]).subscribe()
        await client.connect()
        await asyncio.gather(*(e.count("subscribed", 1) for e in got))
        await api("broadcast", channels=channels, data="all")
        for events in got:
            [ctx] = await events.count("publication", 1)
            self.assertEqual((self.value(ctx.pub.data), ctx.pub.offset), ("all", 1))

    async def test_unsubscribe_and_subscribe_again(self):
        channel = unique("chat:")
        witness, _ = await self.connected()
        _, control = await self.subscribed(witness, channel)
        client, _ = await self.connected()
        sub, got = await self.subscribed(client, channel)
        for n in range(2, 52):
            await sub.unsubscribe()
            await sub.subscribe()
            await got.count("subscribed", n)
        await api("publish", channel=channel, data="once")
        await got.count("publication", 1)
        await sub.unsubscribe()
        await self.fence(client)
        await api("publish", channel=channel, data="unheard")
        await control.count("publication", 2)
        await self.fence(client)
        self.assertEqual([self.value(ctx.pub.data) for ctx in got.named("publication")], ["once"])

    async def test_presence_join_leave(self):
        channel = unique("chat:")
        ann, ann_events = await self.connected(token=jwt(sub="ann"))
        sub, got = await self.subscribed(ann, channel, join_leave=True)
        await got.count("join", 1)
        bob, bob_events = await self.connected(token=jwt(sub="bob"))
        await self.subscribed(bob, channel)
        joins = await got.count("join", 2)
        self.assertEqual([ctx.info.user for ctx in joins], ["ann", "bob"])
        ids = {e.named("connected")[0].client for e in (ann_events, bob_events)}
        self.assertEqual(set((await sub.presence()).clients), ids)
        stats = await sub.presence_stats()
        self.assertEqual((stats.num_clients, stats.num_users), (2, 2))
        await bob.disconnect()
        [left] = await got.count("leave", 1)
        self.assertEqual(left.info.user, "bob")
        self.assertEqual((await sub.presence_stats()).num_clients, 1)

    async def test_history(self):
        channel = unique("chat:")
        for n in range(1, 11):
            await api("publish", channel=channel, data=n)
        client, _ = await self.connected()
        sub, _ = await self.subscribed(client, channel)

        async def numbers(**query):
            return [self.value(p.data) for p in (await sub.history(**query)).publications]

        top = await sub.history(limit=0)
        self.assertEqual((top.offset, top.publications), (10, []))
        self.assertEqual(await numbers(limit=3), [1, 2, 3])
        self.assertEqual(await numbers(limit=3, reverse=True), [10, 9, 8])
        since = StreamPosition(offset=4, epoch=top.epoch)
        self.assertEqual(await numbers(limit=100, since=since), [5, 6, 7, 8, 9, 10])
        with self.assertRaises(ReplyError) as refused:
            await sub.history(limit=1, since=StreamPosition(offset=4, epoch="nope"))
        self.assertEqual(refused.exception.code, 112)

    async def cut_while_publishing(self, channel, publications):
        """A subscriber whose link is cut while the API publishes; returns what it saw once back."""
        link = Relay()
        address = await link.start()
        self.addAsyncCleanup(link.close)
        client, events = await self.connected(address)
        sub, got = await self.subscribed(client, channel)
        link.cut()
        await events.count("connecting", 2)
        for n in publications:
            await api("publish", channel=channel, data=n)
        link.heal()
        back = (await got.count("subscribed", 2))[1]
        return back, got

    async def test_recovery(self):
        channel = unique("chat:")
        back, got = await self.cut_while_publishing(channel, range(1, 9))
        self.assertTrue(back.was_recovering and back.recovered)
        await api("publish", channel=channel, data=9)
        pubs = [ctx.pub for ctx in await got.count("publication", 9)]
        self.assertEqual([self.value(p.data) for p in pubs], list(range(1, 10)))
        self.assertEqual([p.offset for p in pubs], list(range(1, 10)))

    async def test_ten_megabytes_are_recovered_once_and_in_order(self):
        channel = unique("chat:")
        back, got = await self.cut_while_publishing(channel, ["x" * 11_000] * 950)
        self.assertTrue(back.was_recovering and back.recovered)
        await api("publish", channel=channel, data="last")
        pubs = [ctx.pub for ctx in await got.count("publication", 951)]
        self.assertEqual([p.offset for p in pubs], list(range(1, 952)))
        self.assertEqual(self.value(pubs[-1].data), "last")

    async def test_recovery_that_comes_too_late_is_told(self):
        channel = unique("short:")
        back, got = await self.cut_while_publishing(channel, range(1, 11))
        self.assertTrue(back.was_recovering)
        self.assertFalse(back.recovered)
        await api("publish", channel=channel, data=11)
        [ctx] = await got.count("publication", 1)
        self.assertEqual(ctx.pub.offset, 11)

    async def test_refusals_have_codes_and_the_connection_lives(self):
        client, _ = await self.connected()
        sub, _ = await self.subscribed(client, unique("plain-"))
        for call, code in (
            (lambda: client.rpc("anything", self.data({})), 108),
            (lambda: sub.presence(), 108),
            (lambda: sub.presence_stats(), 108),
            (lambda: sub.history(limit=1), 108),
            (lambda: client.publish(unique("chat:"), self.data("no")), 103),
        ):
            with self.assertRaises(ReplyError) as refused:
                await call()
            self.assertEqual(refused.exception.code, code)
        got = OnSubscription()
        await client.new_subscription(unique("no-such-namespace:"), events=got).subscribe()
        [ctx] = await got.count("unsubscribed", 1)
        self.assertEqual(ctx.code, 102)
        await self.fence(client)
        self.assertEqual(client.state, ClientState.CONNECTED)

    async def test_private_channel(self):
        channel = unique("priv:")
        client, _ = await self.connected(token=jwt(sub="ann"))
        got = OnSubscription()
        refused = client.new_subscription(channel, events=got)
        await refused.subscribe()
        [ctx] = await got.count("unsubscribed", 1)
        self.assertEqual(ctx.code, 103)
        client.remove_subscription(refused)
        _, got = await self.subscribed(client, channel, token=jwt(sub="ann", channel=channel))
        await api("publish", channel=channel, data="secret")
        [ctx] = await got.count("publication", 1)
        self.assertEqual(self.value(ctx.pub.data), "secret")

    async def test_server_side_subscriptions(self):
        user, by_token, by_api = unique("user-"), unique("chat:"), unique("chat:")
        client, events = self.client(token=jwt(sub=user, channels=[by_token]))
        await client.connect()
        await events.count("subscribed", 1)
        await api("subscribe", user=user, channel=by_api)
        channels = [ctx.channel for ctx in await events.count("subscribed", 2)]
        self.assertEqual(channels, [by_token, by_api])
        for channel in channels:
            await api("publish", channel=channel, data="hello")
        pubs = await events.count("publication", 2)
        self.assertEqual({ctx.channel for ctx in pubs}, {by_token, by_api})

    async def test_api_disconnect(self):
        user = unique("user-")
        client, events = await self.connected(token=jwt(sub=user))
        await api("disconnect", user=user, disconnect={"code": 4000, "reason": "come back"})
        await events.count("connected", 2)
        self.assertEqual([c.code for c in events.named("connecting")][1], 4000)
        await api("disconnect", user=user)
        [ctx] = await events.count("disconnected", 1)
        self.assertEqual(ctx.code, 3503)


class Json(Suite, unittest.IsolatedAsyncioTestCase):
    pass


if os.environ.get("WEIR_PROTOBUF"):

    class Protobuf(Suite, unittest.IsolatedAsyncioTestCase):
        protobuf = True


if __name__ == "__main__":
    unittest.main(verbosity=2)
