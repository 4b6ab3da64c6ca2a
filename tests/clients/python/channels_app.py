"""An ordinary Django app with Channels: `daphne channels_app:application`. It knows nothing of a proxy."""

from django.conf import settings

settings.configure(
    SECRET_KEY="only-for-tests",
    ALLOWED_HOSTS=["127.0.0.1"],
    INSTALLED_APPS=["channels"],
    ROOT_URLCONF=__name__,
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    USE_X_FORWARDED_HOST=False,
)

from asgiref.sync import async_to_sync  # noqa: E402
from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import OriginValidator  # noqa: E402
from channels.sessions import SessionMiddlewareStack  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import JsonResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


def login(request, name):
    request.session["name"] = name
    return JsonResponse({"host": request.get_host(), "name": name})


def say(request, room):
    async_to_sync(get_channel_layer().group_send)(f"room_{room}", {"type": "said", "who": "server", "text": "hello"})
    return JsonResponse({})


def numbers(request):
    return StreamingHttpResponse(f"{n}\n" for n in range(1000))


urlpatterns = [path("login/<name>", login), path("say/<room>", say), path("numbers", numbers)]


class Room(AsyncJsonWebsocketConsumer):
    async def connect(self):
        self.group = f"room_{self.scope['url_route']['kwargs']['room']}"
        self.name = self.scope["session"].get("name", "nobody")
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def receive_json(self, content):
        await self.channel_layer.group_send(self.group, {"type": "said", "who": self.name, "text": content["text"]})

    async def said(self, event):
        await self.send_json({"who": event["who"], "text": event["text"]})

    async def disconnect(self, code):
        await self.channel_layer.group_send(self.group, {"type": "said", "who": self.name, "text": f"left with {code}"})
        await self.channel_layer.group_discard(self.group, self.channel_name)


rooms = URLRouter([path("room/<room>", Room.as_asgi())])
application = ProtocolTypeRouter({
    "http": get_asgi_application(),
    "websocket": OriginValidator(SessionMiddlewareStack(rooms), ["http://127.0.0.1"]),
})
