"""A job on the machines of a Ray cluster.

    crashproof generate   the job: its run, its output, its signals
      driver.py           a process of its own, in which Ray lives: hands out questions, takes in how they ended
        asker.py          one actor on each machine: sends the requests, stores the answers in the shared store

Ray prints into the streams of its process, replaces its signal handlers, publishes its command line, and may end it.
So the job's own process has nothing to do with Ray.
"""
