"""The Open Inference Protocol v2 over HTTP: the operators as models, for clients that are there already.

`models` says which models there are, `request` and `response` what calls and answers look like, `regions`
and `shared_memory` how tensors travel without the socket, `inference` answers calls, `routes` the rest.
"""
