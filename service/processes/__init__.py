"""Running the service: sockets, TLS, uvicorn, signals, and workers that are watched.

`run.run(settings)` is what `stequant serve` calls. One worker is `server.serve` in this very process; several
are processes that run it on the one socket, under a `supervisor` that imports neither torch nor uvicorn.
"""
