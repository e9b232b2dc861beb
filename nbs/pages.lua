-- What Quarto changes in the pages that nbdev makes: parameters become a table, what is private is not documented (its
-- source stays) and no link, a link in a link goes, and a picture without a description takes the sentence before it.

local function pieces(line) -- A line of a signature: its parts between commas, and the comment after them
  local parts, part, depth, quote = {}, "", 0, nil
  for n = 1, #line do
    local c = line:sub(n, n)
    if quote then
      quote = c ~= quote and quote or nil
    elseif c == "'" or c == '"' then
      quote = c
    elseif c == "#" and depth == 0 then
      return parts, line:sub(n + 2)
    end
    depth = quote and depth or depth + (("([{"):find(c, 1, true) and 1 or (")]}"):find(c, 1, true) and -1 or 0)
    if c == "," and depth == 0 and not quote then
      parts[#parts + 1], part = part:match("^%s*(.-)%s*$"), ""
    else
      part = part .. c
    end
  end
  if part:match("%S") then
    parts[#parts + 1] = part:match("^%s*(.-)%s*$")
  end
  return parts, ""
end

local function parameter(part) -- Name, type and default
  local name, rest = part:match("^(%**[%w_]*)(.*)$")
  local depth = 0
  for n = 1, #rest do
    local c = rest:sub(n, n)
    depth = depth + (("([{"):find(c, 1, true) and 1 or (")]}"):find(c, 1, true) and -1 or 0)
    if c == "=" and depth == 0 then
      return { name, rest:sub(2, n - 1), rest:sub(n + 1) }
    end
  end
  return { name, rest:sub(2), "" }
end

local fields = {} -- What is said of the fields of a class in its source, which nbdev does not find: by class and name

local function read_fields(block)
  local class, above = nil, ""
  for line in block.text:gmatch("[^\n]+") do
    local comment, name = line:match("^    # (.*)"), line:match("^    ([%w_]+): ")
    if line:match("^%S") or line:match("^    def ") then
      class = line:match("^class ([%w_]+)")
      fields[class or ""] = {}
    elseif class and name then
      fields[class][name] = line:match("  # (.*)$") or above
    end
    above = comment and above .. " " .. comment or ""
  end
end

local function rows_of(signature) -- One for each parameter, and one for what is returned
  local rows, result = {}, nil
  for line in signature:gmatch("[^\n]+") do
    local comment = line:match("^    # (.*)")
    if comment and #rows > 0 then
      rows[#rows][4] = rows[#rows][4] .. " " .. comment
    elseif line:match("^    ") then
      local parts, about = pieces(line)
      for _, part in ipairs(parts) do
        rows[#rows + 1] = parameter(part)
        rows[#rows][4] = ""
      end
      rows[#rows][4] = about
    elseif line:match("^%)%->") then
      local kind, about = line:match("^%)%->(.-):%s*#%s*(.*)$")
      result = { "returns", kind or line:match("^%)%->(.*):$"), "", about or "" }
    end
  end
  local told = fields[signature:match("^def ([%w_]+)")] or {}
  for _, row in ipairs(rows) do
    row[4] = row[4] ~= "" and row[4] or told[row[1]] or ""
  end
  if #rows > 0 and result and (result[2] ~= "None" or result[4] ~= "") then
    rows[#rows + 1] = result
  end
  return rows
end

local HEADS = { "parameter", "type", "default", "meaning" }

local function table_of(rows)
  local columns = {}
  for n = 1, 4 do
    for _, row in ipairs(rows) do
      columns[n] = columns[n] or row[n] ~= ""
    end
  end
  local head, body, aligns, widths = {}, {}, {}, {}
  for n = 1, 4 do
    if columns[n] then
      head[#head + 1], aligns[#aligns + 1], widths[#widths + 1] = { pandoc.Plain(HEADS[n]) }, "AlignDefault", 0
    end
  end
  for _, row in ipairs(rows) do
    local cells = {}
    for n = 1, 4 do
      if columns[n] and n == 4 then
        cells[#cells + 1] = { pandoc.Plain(pandoc.utils.blocks_to_inlines(pandoc.read(row[n], "markdown").blocks)) }
      elseif columns[n] then
        local plain = row[n] == "" or row[n] == "returns"
        cells[#cells + 1] = { pandoc.Plain(plain and pandoc.Emph(row[n]) or pandoc.Code(row[n])) }
      end
    end
    body[#body + 1] = cells
  end
  local simple = pandoc.SimpleTable({}, aligns, widths, head, body)
  return pandoc.Div(pandoc.utils.from_simple_table(simple), { class = "parameters" })
end

local function call_of(signature, rows) -- As it is typed
  local words = {}
  for _, row in ipairs(rows) do
    if row[1] ~= "returns" then
      words[#words + 1] = row[1] .. (row[3] ~= "" and "=" .. row[3] or "")
    end
  end
  return signature:match("^def ([%w_.]+)%(") .. "(" .. table.concat(words, ", ") .. ")"
end

local function documented(blocks) -- A heading with a signature: the call, the sentence about it, the table
  for n = #blocks, 2, -1 do
    local block, head = blocks[n], blocks[n - 1]
    if block.t == "CodeBlock" and head.t == "Header" and block.text:match("^def [%w_.]+%(") then
      local about = blocks[n + 1]
      local last = about and about.t == "Para" and about.content[1].t == "Emph" and n + 1 or n
      local rows = rows_of(block.text)
      if pandoc.utils.stringify(head):match("^_%a") then
        local first = n - 1 -- after a rule and a link to the source
        while first > 1 and (blocks[first - 1].t == "HorizontalRule" or blocks[first].t == "Header") do
          first = first - 1
        end
        for _ = first, last do
          blocks:remove(first)
        end
      elseif #rows > 0 then
        if head.content[1].t == "Strong" then -- __call__
          head.content = { pandoc.Str("__" .. pandoc.utils.stringify(head) .. "__") }
        end
        blocks:insert(last + 1, table_of(rows))
        blocks[n] = pandoc.CodeBlock(call_of(block.text, rows), { class = "python" })
      end
    end
  end
  return blocks
end

local said = ""

local function listen(block)
  local text = pandoc.utils.stringify(block):gsub("%s+", " "):gsub("[:.]%s*$", "")
  if text:match("%S") then
    said = text:gsub("^.*[.!?:] (%u)", "%1")
  end
end

local function linked(link)
  if link.target:match("%.html#_") then
    return link.content
  end
  link.content = link.content:walk({
    Str = function(str)
      return str.text:match("%[$") and pandoc.Str(str.text:sub(1, -2)) or pandoc.Str((str.text:gsub("%]%(http.-%)", "")))
    end,
  })
  return link
end

local function described(image)
  if #image.caption == 0 and not (image.attributes.alt or image.attributes["fig-alt"]) then
    image.attributes.alt = said
    return image
  end
end

return {
  { CodeBlock = read_fields },
  { Blocks = documented },
  { Link = linked }, -- also those in the tables
  { traverse = "topdown", Header = listen, Para = listen, Plain = listen, Image = described },
}
