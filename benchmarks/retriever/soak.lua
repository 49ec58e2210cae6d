-- As wrk.lua, with a pause of $PAUSE milliseconds before each request, and answers counted by status.
local bodies, place, pause = {}, 0, 0
local threads = {}
counts = {}

function setup(thread) threads[#threads + 1] = thread end

function init(args)
  for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
  place, pause = tonumber(os.getenv("OFFSET")), tonumber(os.getenv("PAUSE"))
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

-- With a delay, however short, wrk keeps a timer for each connection; that would cost it more than the load does.
if tonumber(os.getenv("PAUSE")) > 0 then
  function delay() return pause end
end

function request()
  place = place % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[place])
end

function response(status) counts[status] = (counts[status] or 0) + 1 end

function done(summary, latency, requests)
  local all = {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("counts")) do all[status] = (all[status] or 0) + count end
  end
  local parts = {}
  for status, count in pairs(all) do parts[#parts + 1] = string.format('"%d": %d', status, count) end
  local e = summary.errors
  io.write(string.format('RESULT {"statuses": {%s}, "seconds": %.3f, "p50": %.1f, "p99": %.1f, "broken": %d}\n',
    table.concat(parts, ", "), summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.timeout))
end
