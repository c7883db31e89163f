"""Searches over HTTP, and a page to look at them: ``tune-hpc serve``.

    app.py              the application: all of the following, wired
    searches.py         the routes of searches; spaces.py: of what there is to run
    bodies.py           what a request may ask for, as pydantic models; forms.py: the same from the page's form
    catalogue.py        the experiments that may be asked for, by name
    submissions.py      one request, one search, however often it is sent
    statuses.py         how jobs stand; readings.py: what came of them, read once for all who ask
    frames.py           filters, order, pages, JSON, CSV and Parquet; curves.py: compact curves for charts
    answers.py          errors as answers, and answers kept for a moment
    access.py           who may ask; tokens.py: the token and the session of a browser
    limits.py           sizes and rates
    launching.py        a launcher that never keeps a reader waiting
    pages.py            the page, with templates/ and static/

It has no state of its own: all is in the storage of jobs, so that it can be ended and begun again at any moment, and
several may share one storage.
"""
