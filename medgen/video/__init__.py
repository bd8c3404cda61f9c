"""Video files: what they hold, their pictures as they are meant to be seen, and clips cut out of them.

Pictures are always upright, square-pixelled, progressive, in one colour space and in growing time from 0 on, so that
nothing above has to know of rotation marks, pixel aspects, fields, colour matrices and clocks.
"""
