"""Links from notebooks to the documentation."""


class LinkedToDocs:
    """A mixin: the HTML of an estimator links to its own page, not to scikit-learn's."""

    _doc_link_module = "sk_avae"
    _doc_link_template = "https://sk-avae.readthedocs.io/en/stable/generated/api/sk_avae.{estimator_name}.html"
