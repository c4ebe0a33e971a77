"""The service as programs see it: OpenAI's protocol over HTTP."""

from tutti.serve.http.app import make_app, make_open_app

__all__ = ["make_app", "make_open_app"]
