"""Where a search runs when not here: jobs on a Ray cluster or on this machine, batch systems.

A **job** is one or more experiments that run elsewhere. All that is known of it lies in its folder on the storage
(``job_folder.py``), so that it can be watched when whatever ran it is gone. ``client.py`` submits, watches and steers
jobs; ``launchers.py`` has the places where their drivers run; ``driver.py`` is what runs there. ``slurm.py`` writes a
script that a batch system runs, which is no job of this kind.
"""
