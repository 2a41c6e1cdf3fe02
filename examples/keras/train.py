"""Trains a Keras model on the numeric features of a training set and exports it as ONNX.

The job installs TensorFlow from requirements.lock, beside the packages of the cluster:

    fw.TrainJob("train.py:train", "examples/keras", requirements="requirements.lock",
                experiment="late", data={"train": training_set}, params={"epochs": 3})
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import tf2onnx

from flywheel_job.signature import Input, Signature

NUMERIC = ("FLOAT64", "INT64", "BOOL")


def train(ctx):
    keras.utils.set_random_seed(ctx.seed)
    columns = [column for column in ctx.data_set("train").columns if column.data_type in NUMERIC]
    names = [column.name for column in columns]
    table = ctx.table("train", [*names, "label"])
    rows = np.nan_to_num(table.select(names).cast(float).to_numpy().astype(np.float32))
    labels = table["label"].to_numpy().astype(np.float32)

    model = keras.Sequential(
        [
            keras.Input((len(names),)),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    for epoch in range(ctx.params["epochs"]):
        history = model.fit(rows, labels, batch_size=256, verbose=0).history
        ctx.log({"loss": history["loss"][0]}, epoch + 1)

    signature = Signature(tuple(Input(column.name, column.data_type) for column in columns))
    ctx.export(to_onnx(model, len(names)), signature, rows[:64], framework="keras", batch_tolerance=1e-5)
    if ctx.rank == 0:
        ctx.artifact("predictions", model.predict(rows[:64], verbose=0).astype("<f4").tobytes())


def to_onnx(model, width):
    """The model as ONNX with the input INPUT and the output SCORE, which ctx.export needs.

    A function is converted because tf2onnx does not know the models of Keras 3; NaN becomes 0 as in training.
    """
    spec = [tf.TensorSpec((None, width), tf.float32, name="INPUT")]
    function = tf.function(
        lambda rows: model(tf.where(tf.math.is_nan(rows), 0.0, rows), training=False), input_signature=spec
    )
    converted, _ = tf2onnx.convert.from_function(function, input_signature=spec, opset=18)
    graph = converted.graph
    renamed = {graph.input[0].name: "INPUT", graph.output[0].name: "SCORE"}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    graph.input[0].name, graph.output[0].name = "INPUT", "SCORE"
    return converted.SerializeToString()
