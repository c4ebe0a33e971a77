"""One door before several processes that compute: versions come and go behind it, and no request is lost.

order.py     what a worker is told: which model, how, where
work.py      the worker: the ordinary service without a guard, for nobody but the gateway
worker.py    one worker as the gateway has it: started, listened to, ended
pool.py      the workers of one version: as many as wanted, replaced when they die
fleet.py     all versions that are served now, and which of them a request is for
forward.py   the application: a request to a worker, its answer back
elsewhere.py the application where a service somewhere else computes
relay.py     what both take to pass on an answer
tally.py     how the requests of one version went
verdict.py   whether a version is worse than the one before it
probe.py     questions whose answers are known
scale.py     how many workers there should be
rising.py    a version on its way to its first request
source.py    where a gateway learns what to serve
follow.py    what the registry says becomes so, step by step; roll-back by itself
gauges.py    all that for Prometheus
run.py       from the start to the last answer
"""
