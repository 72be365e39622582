"""The generator's own process: everything that imports Locust or gevent.

It is started as ``python -m tenfold.measure.load.locust --fd N`` and never imported by the measuring process,
because importing Locust patches the sockets, threads and clocks of the whole process.
"""
