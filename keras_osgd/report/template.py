"""The frame of the page, and its look."""

from __future__ import annotations

import string

__all__ = ["TEMPLATE"]

TEMPLATE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: 0.3rem; }
img { display: block; max-width: 100%; height: auto; margin: 0.5rem auto; }
/* Shadows at the edges where a table goes on: white covers move with the table. */
.wide { display: inline-block; max-width: 100%; overflow-x: auto;
  margin: 0.6rem 2rem 1rem 0; background:
  linear-gradient(to right, white 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, white 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, #0005, transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, #0005, transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 0.87rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.words td + td { text-align: left; min-width: 9rem; max-width: 22rem;
  white-space: normal; overflow-wrap: anywhere; }
.words th { text-align: left; }
.runs :is(td, th):nth-child(2) { text-align: left; min-width: 8rem;
  white-space: normal; }
p, li { max-width: 46rem; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
