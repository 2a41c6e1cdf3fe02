"""Conversion of graphs and stored pipelines between protobuf and domain."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import Error, MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value

from flywheel_protos.trainer.v1 import pipeline_graph_pb2 as pb
from flywheel_trainer.api.convert_times import seconds_of, seconds_to_proto, timestamp
from flywheel_trainer.pipelines.definition import Pipeline
from flywheel_trainer.pipelines.errors import InvalidPipeline
from flywheel_trainer.pipelines.graph import Condition, FanOut, Graph, GraphStep, Source

DEFAULT_INSTANCES = 20
"""Of a fan-out over an output."""


def to_json(message: Message) -> Any:
    """The JSON form of a message. Raises InvalidPipeline for numbers that JSON does not have."""
    try:
        return MessageToDict(message, preserving_proto_field_name=True)
    except (ValueError, Error) as error:  # NaN or infinity in a Struct
        raise InvalidPipeline(f"The message has no JSON form: {error}.", field="graph") from error


def graph_from_proto(message: pb.PipelineGraph) -> Graph:
    """The graph as it was given; `graph_check` checks it."""
    params = {name: to_json(value) for name, value in message.params.items()}
    return Graph(tuple(_step_from_proto(step) for step in message.steps), params)


def graph_to_proto(graph: Graph) -> pb.PipelineGraph:
    message = pb.PipelineGraph(steps=map(_step_to_proto, graph.steps))
    for name, value in graph.params.items():
        message.params[name].CopyFrom(_value(value))
    return message


def pipeline_to_proto(pipeline: Pipeline) -> pb.Pipeline:
    return pb.Pipeline(
        name=str(pipeline.name),
        graph=graph_to_proto(pipeline.graph),
        content_hash=pipeline.content_hash,
        created_at=timestamp(pipeline.created_at),
        created_by=pipeline.created_by,
    )


def _step_from_proto(step: pb.GraphStep) -> GraphStep:
    kind = step.WhichOneof("kind") or ""
    spec: dict[str, Any] = {}
    if kind:
        spec = to_json(getattr(step, kind))
    return GraphStep(
        id=step.id,
        kind=kind,
        spec=spec,
        inputs={path: _source_from_proto(source) for path, source in step.inputs.items()},
        after=tuple(step.after),
        conditions=tuple(
            Condition(one.left.step, one.left.output, one.operator, to_json(one.right))
            for one in step.conditions
        ),
        for_each=_fan_out_from_proto(step.for_each) if step.HasField("for_each") else None,
        retries=step.retries,
        retry_delay_seconds=seconds_of(step.retry_delay),
        timeout_seconds=seconds_of(step.timeout),
        cache=step.cache,
    )


def _step_to_proto(step: GraphStep) -> pb.GraphStep:
    message = pb.GraphStep(
        id=step.id,
        after=step.after,
        retries=step.retries,
        cache=step.cache,
        inputs={path: _source_to_proto(source) for path, source in step.inputs.items()},
        conditions=[
            pb.StepCondition(
                left=pb.StepOutput(step=one.step, output=one.output),
                operator=one.operator,
                right=_value(one.right),
            )
            for one in step.conditions
        ],
        retry_delay=seconds_to_proto(step.retry_delay_seconds),
        timeout=seconds_to_proto(step.timeout_seconds),
    )
    kind = getattr(message, step.kind)
    kind.SetInParent()
    ParseDict(dict(step.spec), kind)
    if step.for_each is not None:
        message.for_each.param = step.for_each.param
        if step.for_each.values:
            message.for_each.values.extend(list(step.for_each.values))
        if step.for_each.step:
            output = pb.StepOutput(step=step.for_each.step, output=step.for_each.output)
            message.for_each.output.CopyFrom(output)
            message.for_each.at_most = step.for_each.at_most
    return message


def _fan_out_from_proto(message: pb.FanOut) -> FanOut:
    values = tuple(to_json(message.values))
    if not message.HasField("output"):
        return FanOut(values, message.param)
    at_most = message.at_most or DEFAULT_INSTANCES
    return FanOut(values, message.param, message.output.step, message.output.output, at_most)


def _source_from_proto(source: pb.ValueSource) -> Source:
    match source.WhichOneof("source"):
        case "step":
            return Source(step=source.step.step, output=source.step.output)
        case "param":
            return Source(param=source.param)
        case "item":
            return Source(item=True, field=source.item.field)
        case _:
            return Source()


def _source_to_proto(source: Source) -> pb.ValueSource:
    if source.item:
        return pb.ValueSource(item=pb.FanOutItem(field=source.field))
    if source.param:
        return pb.ValueSource(param=source.param)
    return pb.ValueSource(step=pb.StepOutput(step=source.step, output=source.output))


def _value(value: Any) -> Value:
    return ParseDict(value, Value())
