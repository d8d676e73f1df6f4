"""Systems under test: one module each, with a class `Sut`.

    Sut(variant)         "module" or "module:variant" on the command line
    up(network, scope)   scope is "cross" or "same": redirect, start proxies, wait until they are ready
    down()               undo; end exactly the processes that it started
    pids() -> dict       {label: pid} of the proxies, for CPU and memory; {} for none
    info() -> dict       versions and settings, kept in the result
    encrypts(scope)      whether plaintext on the wire means that it does not work
"""
import importlib


def load(spec):
    module, _, variant = spec.partition(":")
    return importlib.import_module("suts." + module).Sut(variant)


def meshed_pods(scope):
    """The pods of the mesh, in each scope the two that talk."""
    return ["client", "server"] if scope == "cross" else ["client", "local"]
