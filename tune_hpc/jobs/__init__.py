"""Jobs: experiments that run outside the terminal, on a Ray cluster or on this machine, and batch scripts.

``client.py`` submits and finds jobs, ``job.py`` controls one, and ``job_folder.py`` is their layout on the storage.
``launchers.py`` starts drivers, ``driver.py`` runs a job, and ``sbatch.py`` generates batch scripts.
"""
