"""Searches over HTTP: an API and a page (``tune-hpc serve``).

    app.py             application factory
    routes/            API: searches.py, results.py (trials, curves, logs, report), system.py (health, metrics, spaces)
    schemas.py         request and response models; problems.py: errors (RFC 9457)
    services.py        what the routes share; cache.py: responses and results
    registry.py        the experiments that requests may start
    auth.py            authentication, login; rate_limit.py: token buckets
    middleware.py      audit, security headers, ETags, bodies; connection.py: limits of connections; metrics.py
    pages.py           HTML pages, with forms.py, view_models.py, templates/ and static/
    frame_query.py     filter, sort and page data frames; chart_data.py: data of the charts

The service has no state except the storage of the jobs, so it can be restarted at any time, and several services can
share a storage.
"""
