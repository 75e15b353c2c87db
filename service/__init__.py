"""stequant: straight-through-estimator quantizers, as values, as a drop-in module, over HTTP."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stequant")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
