"""The page to try a model with: plain HTML, CSS and JavaScript, shipped as they are."""

from tutti.serve.page.page import PAGE, with_page

__all__ = ["PAGE", "with_page"]
