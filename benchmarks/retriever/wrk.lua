-- Closed-loop searches for wrk: bodies one a line from $BODIES, from line $OFFSET on, so that no run repeats another.
-- Prints one line: requests, microseconds, p50, p95, p99 (microseconds), answers other than 200, socket errors.
local bodies, place = {}, 0

function init(args)
  for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
  place = tonumber(os.getenv("OFFSET"))
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  place = place % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[place])
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(95), latency:percentile(99), errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
