"""Tables, findings, figures and the HTML report."""
