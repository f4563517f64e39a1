-- Cancel a job that has not ended. Returns {"canceled" or "ended", its record}; {} when there is none.
-- ARGV: id, retention [ms]
local status = redis.call('HGET', P .. 'job:' .. ARGV[1], 'status')
if not status then return {} end
if not is_open(status) then return {'ended', record(ARGV[1])} end
cancel(ARGV[1], now(), ARGV[2])
return {'canceled', record(ARGV[1])}
