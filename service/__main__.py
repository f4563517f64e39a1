"""`python -m service` is `pfgmpp`."""

from service.cli import app

app()
