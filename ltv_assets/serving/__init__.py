"""The champion behind an HTTP request, at bid time.

What belongs here: the application (``app.py``), what bounds a request (``limits.py``), requests taken apart (``requests.py``), the
model in use and its exchange (``champion.py``), what it is doing (``metrics.py``), its description (``openapi.py``) and the processes
(``server.py``). What does not: scoring itself (``scoring/online.py``), who is champion (``promotion/``). Next to read: ``app.py``.
"""
