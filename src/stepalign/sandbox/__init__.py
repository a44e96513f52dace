"""Sandbox that runs an untrusted program on tests, without letting it see them or judge itself.

    caller ── socket ── server ─┬─ judge    has the tests, asks for calls, compares plain values
                                └─ program  has the program, answers calls, knows neither tests nor verdict

The server is one process that lives on, in bubblewrap where that is installed. For each program it forks two processes,
both confined. Judge and program exchange values of builtin types alone, so an object of the program with an `__eq__` of
its own never meets an expected value. All modules but `launch` run inside and import the standard library only.
"""
