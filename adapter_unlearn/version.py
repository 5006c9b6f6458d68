"""The version of the package, alone in a module so that every other module may import it."""

__version__ = "0.1.0.dev0"
