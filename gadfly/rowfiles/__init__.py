"""Files of questions and answers that people have, read row by row.

`sources` opens a file of any known format and yields its rows as they are; `shapes` finds question, response and label
in a row; `rows` checks them; `latex` repairs LaTeX commands that JSON read as control characters. Memory holds one
batch of rows, however large the file is.
"""
