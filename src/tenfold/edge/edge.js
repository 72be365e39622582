// What nginx's own cache cannot do: keys with versions, lifetimes by RFC 9111 and 9213, Age, invalidation.
// The rules come from edge_rules.json. tenfold.edge.decision has the same decisions in Python.

function splitUri(r) {
    const uri = r.variables.request_uri, at = uri.indexOf("?");
    return at < 0 ? [uri, ""] : [uri.slice(0, at), uri.slice(at + 1)];
}

// ------------------------------------------------------------------ keys

function key(r) {
    const rule = edge_rules[r.variables.edge_rule], uri = splitUri(r), path = uri[0];
    let query = uri[1];
    if (query && rule.ignore.length) {
        query = query.split("&").filter((part) => !ignores(rule, part.split("=", 1)[0])).join("&");
    }
    const place = r.variables.public_host + path;
    return `${place}${query ? "?" + query : ""}|${r.variables.edge_variants}|${version(place, rule.tags)}`;
}

function ignores(rule, name) {
    for (let i = 0; i < rule.ignore.length; i++) {  // what is preloaded has no methods
        const one = rule.ignore[i], end = one.length - 1;
        if (one[end] === "*" ? name.slice(0, end) === one.slice(0, end) : name === one) return true;
    }
    return false;
}

// The number of the last purge or change that concerns a place: entries with an older one are not found.
function version(place, tags) {
    const dict = ngx.shared.edge_versions;
    let newest = dict.get("*");
    if (newest === undefined) {  // the first request since the start: what is on disk is from before
        dict.add("*", Date.now() * 1000);
        newest = dict.get("*");
    }
    const own = dict.get("/" + place);
    if (own > newest) newest = own;
    for (let i = 0; i < tags.length; i++) {
        const tagged = dict.get("#" + tags[i]);
        if (tagged > newest) newest = tagged;
    }
    return newest;
}

function bump(name) {
    const dict = ngx.shared.edge_versions;
    // Above all before it, whatever the clock says now.
    const number = dict.incr("+", 1, Math.max(dict.get("*") || 0, Date.now() * 1000));
    try {
        dict.set(name, number);
    } catch (error) {  // no room: everything is purged
        dict.clear();
        dict.set("+", number + 1);
        dict.set("*", number + 1);
    }
}

function purge(r) {
    const tags = (r.args.tag === undefined ? [] : [].concat(r.args.tag)).filter((tag) => tag);
    if (r.method !== "POST" || !tags.length) {
        r.return(400, "POST /?tag=NAME&tag=NAME purges\n");
        return;
    }
    tags.forEach((tag) => bump(tag === "*" ? "*" : "#" + tag));
    r.return(204);
}

// ------------------------------------------------------------------ what is stored, and for how long

function directives(text) {
    const found = {}, pattern = /[,\s]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=("(?:[^"\\]|\\.)*"|[^,\s]*))?[^,]*/g;
    let match;
    while (text && (match = pattern.exec(text)) !== null) {
        const name = match[1].toLowerCase();
        let value = match[2] || "";
        if (value[0] === '"') value = value.length > 1 && value.endsWith('"') ? value.slice(1, -1) : "invalid";
        if (!(name in found)) found[name] = value;
    }
    return found;
}

// Patterns are literals inside of functions: what stands outside runs for every request.

// Whether a field is a dictionary of RFC 8941.
function isDictionary(text) {
    return /^ *[a-z*][a-z0-9_.*-]*(?:=(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[^"\\]|\\["\\])*"|\?[01]|[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:\/-]*))?(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:=(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[^"\\]|\\["\\])*"|\?[01]|[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:\/-]*))?)*(?:[ \t]*,[ \t]*[a-z*][a-z0-9_.*-]*(?:=(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[^"\\]|\\["\\])*"|\?[01]|[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:\/-]*))?(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:=(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[^"\\]|\\["\\])*"|\?[01]|[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:\/-]*))?)*)* *$/.test(text);
}

// CDN-Cache-Control counts for nothing unless it is a dictionary whose durations are integers (RFC 9213).
function targeted(text) {
    const loose = /(?:^|[ ,\t])(?:max-age|s-maxage|stale-while-revalidate|stale-if-error)(?:=(?![0-9]+(?:[ ,;\t]|$))|(?=[ ,;\t]|$))/;
    return text && isDictionary(text) && !loose.test(text) ? directives(text) : {};
}

function seconds(text) {
    return text !== undefined && /^[0-9]+$/.test(text) ? Math.min(Number(text), 2147483648) : undefined;
}

function dateForm(number) {
    if (number === 0) {
        return /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([ \d]\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT$/;
    }
    if (number === 1) {
        return /^(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, ([ \d]\d)-([A-Z][a-z]{2})-(\d\d) (\d\d):(\d\d):(\d\d) GMT$/;
    }
    return /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) ([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})$/;
}

function date(text) {
    for (let form = 0; text && form < 3; form++) {
        const m = dateForm(form).exec(text);
        if (m) {
            const f = form === 2 ? [m[2], m[1], m[6], m[3], m[4], m[5]] : m.slice(1);
            const month = "JanFebMarAprMayJunJulAugSepOctNovDec".indexOf(f[1]) / 3;
            let year = Number(f[2]);
            if (form === 1) year += year < 69 ? 2000 : 1900;
            return month < 0 || month % 1 ? undefined : Date.UTC(year, month, Number(f[0]), f[3], f[4], f[5]) / 1000;
        }
    }
    return undefined;
}

// Of an answer of the app: seconds for which it is fresh, stale seconds, its age; without lifetime it is not stored.
function storage(r, out, now) {
    const forCdn = targeted(r.variables.upstream_http_cdn_cache_control), aimed = Object.keys(forCdn).length > 0;
    const said = aimed ? forCdn : directives(r.variables.upstream_http_cache_control);
    const refused = (r.method !== "GET" && r.method !== "HEAD") || r.status === 206 || r.status === 304 ||
        "no-store" in said || "private" in said || "no-cache" in said ||
        (r.variables.upstream_http_vary || "").split(",").some((name) => name.trim() === "*");
    const made = date(r.variables.upstream_http_date);
    let lifetime;
    if ("s-maxage" in said || "max-age" in said) {
        lifetime = seconds("s-maxage" in said ? said["s-maxage"] : said["max-age"]) || 0;
    } else if (!aimed && out["Expires"] !== undefined) {
        const expires = date(out["Expires"]);
        lifetime = expires === undefined ? 0 : Math.min(expires - (made === undefined ? now : made), 2147483648);
    }
    const first = (out["Age"] || "").split(",")[0].trim();
    const age = Math.max(made === undefined ? 0 : now - made, seconds(first) || 0, 0);
    const strict = "must-revalidate" in said || "proxy-revalidate" in said || (!aimed && "s-maxage" in said);
    const left = refused || lifetime === undefined ? 0 : Math.max(lifetime - age, 0);
    return {
        left: left, age: age, lifetime: lifetime,
        swr: strict ? 0 : seconds(said["stale-while-revalidate"]) || 0,
        error: strict ? 0 : seconds(said["stale-if-error"]) || 0,
    };
}

// The inner server's header filter. nginx reads X-Accel-Expires before all others; the client gets what the app said.
function describe(r) {
    const out = r.headersOut, now = Math.floor(Date.now() / 1000);
    (r.variables.upstream_http_connection || "").split(",").map((name) => name.trim()).forEach((name) => {
        if (name && !/^(close|keep-alive|upgrade|content-length|content-type|date)$/i.test(name)) delete out[name];
    });
    if (!/^(GET|HEAD|OPTIONS|TRACE)$/.test(r.method) && r.status >= 200 && r.status < 400) {
        bump("/" + r.variables.http_host + splitUri(r)[0]);
    }
    const found = storage(r, out, now);
    out["X-Accel-Expires"] = String(found.left);
    const said = r.variables.upstream_http_cache_control;
    if (said !== undefined) out["X-Edge-Cache-Control"] = said;
    if (found.left > 0) {
        out["X-Edge-Stored"] = `${now - found.age} ${found.lifetime}`;
        out["Cache-Control"] = `stale-while-revalidate=${found.swr}, stale-if-error=${found.error}`;
    }
}

// Age of an answer from the cache. After a revalidation only its upper bound is known: it is fresh.
function age(r) {
    const stored = (r.variables.upstream_http_x_edge_stored || "").split(" ");
    if (stored.length < 2) return "";
    const passed = Math.max(Math.floor(Date.now() / 1000) - Number(stored[0]), 0), lifetime = Number(stored[1]);
    const isFresh = r.variables.upstream_cache_status === "HIT";
    return String(isFresh && passed >= lifetime ? Math.max(lifetime - 1, 0) : passed);
}

export default { age, describe, key, purge };
