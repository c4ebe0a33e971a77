"""How anything here answers over HTTP: the door at which it listens, and the server behind it."""
