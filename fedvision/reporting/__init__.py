"""The run folder and what is made from it: text, tables, pictures, the HTML report."""
