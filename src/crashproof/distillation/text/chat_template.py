"""Chat template for tokenizers without one."""

from __future__ import annotations

__all__ = ["BUILTIN_TEMPLATE"]

_KIND = """\
{% macro kind(schema) -%}
{% set unsaid = ['type', 'properties', 'required', 'items', 'enum', 'format', 'additionalProperties'] -%}
{% if schema is not mapping or schema.keys() | reject('in', unsaid) | list or schema['additionalProperties'] -%}
{{ schema | tojson }}
{%- elif schema['enum'] -%}
{% for value in schema['enum'] %}{{ value | tojson }}{{ ' or ' if not loop.last }}{% endfor %}
{%- elif schema['type'] == 'object' and schema['properties'] is mapping -%}
{ {%- for name, inner in schema['properties'].items() -%}
{{ name }}{{ '' if name in (schema['required'] or []) else '?' }}: {{ kind(inner) }}{{ ', ' if not loop.last }}
{%- endfor -%} }
{%- elif schema['type'] == 'array' and schema['items'] is mapping -%}
list of {{ kind(schema['items']) }}
{%- elif schema['type'] is string and 'properties' not in schema and 'items' not in schema -%}
{{ schema['format'] or schema['type'] }}
{%- else -%}
{{ schema | tojson }}
{%- endif %}
{%- endmacro -%}
"""
"""A JSON Schema, abbreviated if that loses nothing."""

_TOOLS = """\
{% if tools -%}
<|tools|>
{% for tool in tools -%}
{{ tool['function']['name'] }} {{ kind(tool['function']['parameters'] or {'type': 'object', 'properties': {}}) }}
{%- if tool['function']['description'] %} {{ tool['function']['description'] }}{% endif %}

{% endfor -%}
<|end|>
{% endif -%}
"""

_MESSAGES = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{{ '\n' if message['content'] or not loop.first }}"
    "<tool_call>\n{\"name\": {{ call['function']['name'] | tojson }}, "
    "\"arguments\": {{ call['function']['arguments'] | tojson }}}\n</tool_call>{% endfor %}"
    "<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Calls in the format of Hermes models."""

BUILTIN_TEMPLATE = _KIND + _TOOLS + _MESSAGES
"""Offers tools as `name {parameter: kind, optional?: kind} description`, in a third of the tokens of their JSON."""
