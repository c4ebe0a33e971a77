"""What stands before the application: who may ask, how much, what is hidden, what is refused, what is written down.

Each is a plain ASGI layer that knows OpenAI's protocol, and no model.
"""
