"""A client of the service, for programs and notebooks: blocking, and for asyncio.

    from service.client import Client

    images = Client().sample(dataset="digits", D=2048, count=16, scale=8)
    images[0].show()

`asks` says what is asked and what the answer means, `exchange` what is asked again and when, `following` how a job is
watched: all without a connection. `blocking` and `asynchronous` do it, each in its own way to wait.
"""

from service.client.asks import SampleFields
from service.client.asynchronous import AsyncClient, AsyncSubmitted
from service.client.blocking import Client, Submitted
from service.client.errors import ClientError, JobFailed, Refused, Unreachable
from service.client.following import Event, Preview
from service.client.images import Images

__all__ = [
    "AsyncClient",
    "AsyncSubmitted",
    "Client",
    "ClientError",
    "Event",
    "Images",
    "JobFailed",
    "Preview",
    "Refused",
    "SampleFields",
    "Submitted",
    "Unreachable",
]
