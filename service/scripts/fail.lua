-- Give a batch, or one job of it, back to its lanes: charged as an attempt after an error, free of charge when a
-- worker leaves. Returns what became of its jobs: job, model, "requeued" or "failed", job, ...
-- ARGV: batch, error, charged (1 or 0), most attempts, retention [ms], job (or "" for all)
if not redis.call('ZSCORE', P .. 'leases', ARGV[1]) then return {} end
return give_back(ARGV[1], ARGV[6], ARGV[2], ARGV[3] == '1', now(), tonumber(ARGV[4]), ARGV[5])
