"""`tutti dashboard`: runs and services in a browser, while they go on. It reads events and metrics, and writes nothing
that a run or a service would see."""
