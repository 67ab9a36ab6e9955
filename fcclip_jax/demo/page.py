"""The layout of the page, in Gradio."""

import pathlib
from typing import NamedTuple

import gradio as gr

from fcclip_jax.conventions import TASKS
from fcclip_jax.demo import overlay
from fcclip_jax.demo.answers import Answerer, Question

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""Gradio's own, with the fonts of the visitor's system: its fonts come from Google."""

CHECK_EVERY, KEEP_UPLOADS = 60, 600
"""Seconds: uploads that were not segmented again for this long are deleted, and the folder when the server ends."""


class Example(NamedTuple):
    """A photograph that the page offers, with words."""

    photo: pathlib.Path
    words: str
    stuff: str


class About(NamedTuple):
    """What the page says of its model, in Markdown, and what it starts with."""

    title: str
    text: str
    words: str
    stuff: str
    examples: tuple[Example, ...]


def build(answerer: Answerer, about: About) -> gr.Blocks:
    """Returns the page."""
    defaults, mixture = answerer.segmenter.defaults, answerer.segmenter.engine.ensemble

    def answer(photo, words, stuff, task, threshold, alpha, beta, void_trust):
        path = photo and photo["path"]
        if path and pathlib.Path(path).exists():
            pathlib.Path(path).touch()  # Gradio deletes by age
        found = answerer.answer(Question(path, words, stuff, alpha, beta, void_trust))
        result = "" if found.result is None else overlay.render(found.result, task, threshold)
        return f'<p class="sentence">{overlay.escape(found.sentence)}</p>', result

    def answer_photo(photo, *others):
        """Answers a new photograph; without one, as when the camera is chosen, nothing was asked."""
        return answer(photo, *others) if photo else ("", "")

    with gr.Blocks(title=about.title, analytics_enabled=False, delete_cache=(CHECK_EVERY, KEEP_UPLOADS)) as page:
        gr.Markdown(f"# {about.title}\n\n{about.text}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.Image(
                    type="filepath", label="Photograph", sources=["upload", "webcam", "clipboard"], height=260
                )
                words = gr.Textbox(
                    about.words,
                    label="Words",
                    lines=2,
                    info="Separate them by commas or lines; synonyms by |, as in cat|kitten.",
                )
                stuff = gr.Textbox(
                    about.stuff,
                    label="Stuff among them",
                    info="Words such as sky or grass, which are not counted one by one.",
                )
                task = gr.Radio(list(TASKS), value=TASKS[0], label="Task")
                run = gr.Button("Segment", variant="primary")
                with gr.Accordion("Settings", open=False):
                    threshold = gr.Slider(0, 1, defaults.instance_threshold, step=0.05, label="Instances: lowest score")
                    alpha = gr.Slider(
                        0,
                        1,
                        mixture.alpha,
                        step=0.05,
                        label="α",
                        info="The weight of CLIP for words with masks in training.",
                    )
                    beta = gr.Slider(
                        0, 1, mixture.beta, step=0.05, label="β", info="The weight of CLIP for all other words."
                    )
                    void_trust = gr.Slider(
                        0,
                        1,
                        defaults.panoptic_void_trust,
                        step=0.05,
                        label="Panoptic: trust in CLIP where the model sees nothing",
                        info="More finds more objects of words without masks in training, and more false ones.",
                    )
            with gr.Column(scale=3, min_width=300):
                sentence = gr.HTML(elem_id="sentence")
                result = gr.HTML(
                    js_on_load=overlay.SCRIPT, css_template=overlay.STYLE, elem_id="result", apply_default_css=False
                )
        if about.examples:
            shown = [[str(example.photo), example.words, example.stuff] for example in about.examples]
            examples = gr.Examples(shown, [photo, words, stuff], cache_examples=False, label="Examples")
        if answerer.segmenter.known_words is not None:
            known = sorted(answerer.segmenter.known_words)
            with gr.Accordion(f"The {len(known)} words that this model knows", open=False):
                gr.Markdown(", ".join(known))
        gr.Markdown(
            "Nothing that you send is kept: a photograph is deleted when it was not used for ten minutes, and the words and"
            " results are not stored."
        )
        inputs, outputs = [photo, words, stuff, task, threshold, alpha, beta, void_trust], [sentence, result]
        # The photograph's file is passed on as it was uploaded: Gradio's own reading reports a damaged one without a reason. It
        # has checked before that the file is an upload.
        how = {"preprocess": False, "concurrency_limit": 1, "concurrency_id": "segment", "api_visibility": "private"}
        gr.on(
            [
                run.click,
                words.submit,
                stuff.submit,
                task.input,
                *(slider.release for slider in (threshold, alpha, beta, void_trust)),
            ],
            answer,
            inputs,
            outputs,
            trigger_mode="always_last",
            **how,
        )
        photo.input(answer_photo, inputs, outputs, trigger_mode="always_last", **how)
        if about.examples:
            examples.load_input_event.then(answer, inputs, outputs, **how)
    return page
