-- Chat requests for wrk: POST /v1/chat/completions, one of them unlike the next where it is asked.
--
--   wrk -s bench/chat.lua URL -- HEAD_FILE TAIL_FILE PREFIX
--
-- A body is HEAD, PREFIX and a counter of nine digits, TAIL; an empty PREFIX leaves both out, so
-- that all bodies are the same. At the end: one line of JSON, times in microseconds.

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local start, finish, fixed
local count = 0

function init(args)
  local head, tail, prefix = read(args[1]), read(args[2]), args[3] or ""
  local size = #head + #tail + (prefix == "" and 0 or #prefix + 9)
  local lines = {"POST /v1/chat/completions HTTP/1.1\r\n"}
  for name, value in pairs(wrk.headers) do  -- Host, and those of -H
    lines[#lines + 1] = name .. ": " .. value .. "\r\n"
  end
  lines[#lines + 1] = "Content-Type: application/json\r\nContent-Length: " .. size .. "\r\n\r\n"
  start = table.concat(lines) .. head .. prefix
  finish = tail
  if prefix == "" then fixed = start .. tail end
end

function request()
  if fixed then return fixed end
  count = count + 1
  return start .. string.format("%09d", count) .. finish
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"seconds": %.6f, "requests": %d, "refused": %d, "failed": %d, "p50_us": %.1f, "p95_us": %.1f, "p99_us": %.1f}\n',
    summary.duration / 1e6, summary.requests, errors.status,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
