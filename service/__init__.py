"""The service: a request enters by the API, waits in the queue, and is batched, computed, drawn and fetched.

api -> request (validated by the catalogue) -> queue (waits) -> worker (batched) -> engine (computed: the one bridge to
`models`) -> picture (drawn) -> store (kept) -> api (fetched). `supervisor` keeps the processes alive.
"""

__version__ = "0.1.0"

DEFAULT_SERVER = "http://127.0.0.1:8000"
"""Where clients look for a service that were not told another place."""
