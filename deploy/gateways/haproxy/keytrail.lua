-- Asks Keytrail about the request that HAProxy holds.
--
-- The action http-request lua.keytrail reads what to ask for from the variables
-- txn.kt_keyspace, txn.kt_scope, txn.kt_resource and txn.kt_min_position_header (empty:
-- not asked for). Allowed, it sets the identity headers of the request; refused, it sends the regime's own
-- answer to the client. Anything else is 503: nothing reaches the upstream.
--
-- The action http-request lua.keytrail_preflight answers a web page's preflight, as the
-- keyspace's definition says, and always ends the request.

local verifier = os.getenv("KEYTRAIL_VERIFIER") or "http://127.0.0.1:7070"

-- To the upstream. All are set from the answer, also to nothing.
local identity = {
	"x-keytrail-key-id", "x-keytrail-tenant", "x-keytrail-type", "x-keytrail-scopes", "x-keytrail-scopes-omitted",
	"x-keytrail-environment", "x-keytrail-use-id", "x-request-id",
}

-- To the client. A regime that names other headers of its limit needs them here.
local limit = {
	"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
	"ratelimit", "ratelimit-policy", "x-request-id",
}

-- To the client, of a refusal and of the answer to a preflight.
local refusal = {
	"content-type", "cache-control", "www-authenticate", "retry-after", "grpc-status", "grpc-message", "vary",
	"access-control-allow-origin", "access-control-expose-headers",
	"access-control-allow-methods", "access-control-allow-headers", "access-control-max-age",
}
for _, name in ipairs(limit) do
	table.insert(refusal, name)
end

-- Not to Keytrail: what belongs to the connection, the body or a page's session.
local dropped = {
	["connection"] = true, ["content-length"] = true, ["cookie"] = true, ["expect"] = true, ["host"] = true,
	["keep-alive"] = true, ["te"] = true, ["trailer"] = true, ["transfer-encoding"] = true, ["upgrade"] = true,
}

local function first(headers, name)
	local values = headers[name]
	return values and values[0]
end

local function escape(s)
	return (s:gsub("[^%w%-._~/:@]", function(c) return string.format("%%%02X", c:byte()) end))
end

local function unavailable(txn)
	local reply = txn:reply({ status = 503 })
	reply:add_header("content-type", "application/problem+json")
	reply:add_header("retry-after", "1")
	reply:set_body('{"type":"about:blank","title":"Service Unavailable","status":503}')
	txn:done(reply)
end

-- The answer of Keytrail at url to the client's headers, nil without one.
local function ask(txn, url)
	-- All of them, so that a credential presented twice is seen to be. haproxy.cfg has set
	-- X-Forwarded-For and X-Forwarded-Proto.
	local headers = {}
	for name, values in pairs(txn.http:req_get_headers()) do
		if not dropped[name] then
			local list = {}
			for i = 0, #values do
				list[i + 1] = values[i]
			end
			headers[name] = list
		end
	end
	-- Keytrail answers within 2 s, also where it waits for a position or the ledger.
	local ok, answer = pcall(function()
		return core.httpclient():get({ url = url, headers = headers, timeout = 3000 })
	end)
	return ok and answer and answer.status and answer or nil
end

-- Sends Keytrail's answer to the client. Its Access-Control headers stay as they are.
local function answered(txn, answer, status)
	txn:set_var("txn.kt_answered", true)
	local reply = txn:reply({ status = status })
	for _, name in ipairs(refusal) do
		local value = first(answer.headers, name)
		if value then
			reply:add_header(name, value)
		end
	end
	reply:set_body(answer.body or "")
	txn:done(reply)
end

core.register_action("keytrail", { "http-req" }, function(txn)
	local url = verifier .. "/v1/authorize/" .. (txn:get_var("txn.kt_keyspace") or "")
	local query = {}
	for _, name in ipairs({ "scope", "resource", "min_position_header" }) do
		local value = txn:get_var("txn.kt_" .. name)
		if value and value ~= "" then
			table.insert(query, name .. "=" .. escape(value))
		end
	end
	if #query > 0 then
		url = url .. "?" .. table.concat(query, "&")
	end

	local answer = ask(txn, url)
	if not answer then
		return unavailable(txn)
	end

	-- Keytrail reads 64 KB of headers: of more it can decide nothing.
	if answer.status == 431 then
		local reply = txn:reply({ status = 431 })
		reply:add_header("content-type", "application/problem+json")
		reply:set_body('{"type":"about:blank","title":"Request Header Fields Too Large","status":431}')
		txn:done(reply)
		return
	end

	-- Only Keytrail's answers carry such an id; HAProxy's own 503 does not.
	local id = first(answer.headers, "x-request-id")
	if not id or id:sub(1, 4) ~= "req_" then
		return unavailable(txn)
	end
	if answer.status == 200 and (first(answer.headers, "x-keytrail-key-id") or "") ~= "" then
		for _, name in ipairs(identity) do
			txn.http:req_set_header(name, first(answer.headers, name) or "")
		end
		local keep = {}
		for _, name in ipairs(limit) do
			keep[name] = first(answer.headers, name)
		end
		txn:set_priv(keep)
		return
	end
	if answer.status < 400 then
		return unavailable(txn)
	end
	-- gRPC has its status in a header, and wants 200.
	answered(txn, answer, first(answer.headers, "grpc-status") and 200 or answer.status)
end)

core.register_action("keytrail_preflight", { "http-req" }, function(txn)
	local answer = ask(txn, verifier .. "/v1/preflight/" .. (txn:get_var("txn.kt_keyspace") or ""))
	local id = answer and first(answer.headers, "x-request-id")
	if not id or id:sub(1, 4) ~= "req_" then
		return unavailable(txn)
	end
	answered(txn, answer, answer.status)
end)

-- The limit's headers of an allowed request, instead of the upstream's.
core.register_action("keytrail_limit", { "http-res" }, function(txn)
	local keep = txn:get_priv() or {}
	for _, name in ipairs(limit) do
		txn.http:res_del_header(name)
		if keep[name] then
			txn.http:res_set_header(name, keep[name])
		end
	end
end)
