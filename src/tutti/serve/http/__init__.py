"""The service as programs see it: OpenAI's protocol over HTTP."""

from tutti.serve.http.app import make_app
from tutti.serve.http.server import run_server

__all__ = ["make_app", "run_server"]
