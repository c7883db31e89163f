"""HTTP service: an API and pages to start, watch and control searches (``tune-hpc serve``).

The storage of the jobs is the only state, so the service can be restarted at any time, and several services can share a
storage. docs/architecture.md describes the modules.
"""
