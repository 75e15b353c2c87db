"""The same operator on other tensor servers, each as fast as its own documentation makes it.

`python -m benchmarks peers` installs them, measures them beside ours, and writes PEERS.md.
"""
