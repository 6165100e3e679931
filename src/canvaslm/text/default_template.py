"""The chat template used when a checkpoint brings none: Gemma 4's turns, thinking and tools in short."""

from __future__ import annotations

DEFAULT_TEMPLATE = """\
{%- macro value(v, upper=false) -%}
  {%- if v is string -%}<|"|>{{ v | upper if upper else v }}<|"|>
  {%- elif v is boolean -%}{{ 'true' if v else 'false' }}
  {%- elif v is none -%}null
  {%- elif v is mapping -%}
    {
    {%- for k, item in v | dictsort -%}
      {{ k }}:{{ value(item, k == 'type') }}{{ ',' if not loop.last }}
    {%- endfor -%}
    }
  {%- elif v is sequence -%}
    [
    {%- for item in v -%}{{ value(item, upper) }}{{ ',' if not loop.last }}{%- endfor -%}
    ]
  {%- else -%}{{ v }}
  {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set system = messages[0]['role'] in ['system', 'developer'] -%}
{%- if system or tools or enable_thinking -%}
  {{- '<|turn>system\\n' -}}
  {%- if enable_thinking -%}{{- '<|think|>\\n' -}}{%- endif -%}
  {%- if system -%}{{- messages[0]['content'] | trim -}}{%- endif -%}
  {%- for tool in tools or [] -%}
    {%- set f = tool['function'] -%}
    <|tool>declaration:{{ f['name'] }}{description:{{ value(f['description']) }}
    {%- if f['parameters'] -%},parameters:{{ value(f['parameters']) }}{%- endif -%}
    }<tool|>
  {%- endfor -%}
  {{- '<turn|>\\n' -}}
{%- endif -%}
{%- set ns = namespace(open=false, last='', calls=[]) -%}
{%- for m in (messages[1:] if system else messages) -%}
  {%- if m['role'] == 'tool' -%}
    {%- set tool_name = namespace(is=m['name'] or 'unknown') -%}
    {%- for call in ns.calls if call['id'] == m['tool_call_id'] -%}
      {%- set tool_name.is = call['function']['name'] -%}
    {%- endfor -%}
    <|tool_response>response:{{ tool_name.is }}{value:{{ value(m['content']) }}}<tool_response|>
  {%- else -%}
    {%- if not (ns.last == m['role'] == 'assistant') -%}
      {{- '<|turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' -}}
    {%- endif -%}
    {{- m['content'] | trim -}}
    {%- set ns.calls = m['tool_calls'] or [] -%}
    {%- for call in ns.calls -%}
      <|tool_call>call:{{ call['function']['name'] }}{{ value(call['function']['arguments']) }}<tool_call|>
    {%- endfor -%}
    {%- set ns.last = m['role'] -%}
    {%- set ns.open = ns.calls | length > 0 -%}
    {%- if not ns.open -%}{{- '<turn|>\\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.open -%}
  {{- '<|turn>model\\n' -}}
  {%- if not enable_thinking -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}
{%- endif -%}
"""

__all__ = ["DEFAULT_TEMPLATE"]
