"""HTTP service: an API and pages to start, watch and control searches (``tune-hpc serve``).

    app.py             application factory
    routes/            API: searches.py, results.py (trials, curves, logs, report), system.py (health, metrics, spaces)
    schemas.py         request and response models; problems.py: error types (RFC 9457)
    services.py        shared by the routes; cache.py: responses and results
    registry.py        experiments that requests may start
    auth.py            authentication, login; rate_limit.py: token buckets
    middleware.py      request context, audit log, security headers, ETags, bodies; metrics.py
    connection.py      server, and limits of connections
    pages.py           HTML pages, with forms.py, templates.py, templates/ and static/

The storage of the jobs is the only state, so the service can be restarted at any time, and several services can share a
storage.
"""
