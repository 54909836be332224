"""`python -m nbsgl bench`: the engine measured from outside, in its own processes, beside what the card allows.

    workloads, programs      what is run          drive, start, latency, mixed     how it is run and timed
    engines                  who runs it          floors, cards, clocks            what stands beside each figure
    session, cli             one run              rows, report, plot, peers        what is written and compared

The measuring process imports no torch and holds no memory of the card; ceilings are measured by a helper process.
"""
