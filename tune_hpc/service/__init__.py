"""HTTP service: an API and pages to start, watch and control searches (``tune-hpc serve``).

    app.py                       application factory
    search_routes.py, result_routes.py, system_routes.py: routes of the API, with their models in schemas.py
    services.py, cache.py        shared by the routes: registered experiments, status, responses, results
    problems.py                  state of a request, error types (RFC 9457)
    auth.py, middleware.py       authentication, rate limits; audit log, security headers, ETags, bodies
    connection.py                server, and limits of connections
    pages.py                     HTML pages, with forms.py, templates.py, templates/ and static/

The storage of the jobs is the only state, so the service can be restarted at any time, and several services can share a
storage.
"""
