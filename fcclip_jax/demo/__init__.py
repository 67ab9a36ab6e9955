"""A page that segments a visitor's photographs: `fcclip demo`.

answers.py    what a visitor asks, to a result or a sentence
overlay.py    a result as HTML: the picture, the hover text, the table and the downloads
page.py       the layout
serving.py    the server, and the folder of uploads

overlay.js and overlay.css are part of the page. Gradio, the extra [demo], is imported by page.py and serving.py only.
"""
