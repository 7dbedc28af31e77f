import type { JSX } from "preact"

import { formatBytes, formatCount } from "../format.ts"
import { t } from "../language.ts"
import type { ModuleEntry } from "./api.ts"
import { bytesByDevice, groupModules } from "./modules.ts"

/** Where weights are: by device as bars, by kind of module as a table. */
export function Placement({ modules }: { modules: readonly ModuleEntry[] }): JSX.Element {
  if (modules.length === 0) return <p class="view-empty">{t("noModules")}</p>
  return (
    <>
      <Devices modules={modules} />
      <div class="table-scroll" role="group" tabIndex={0} aria-label={t("placement")}>
        <table class="table">
          <thead>
            <tr>
              <th scope="col">{t("modulePattern")}</th>
              <th scope="col" class="number">
                {t("moduleCount")}
              </th>
              <th scope="col">{t("operator")}</th>
              <th scope="col">{t("device")}</th>
              <th scope="col">{t("types")}</th>
              <th scope="col" class="number">
                {t("bytes")}
              </th>
            </tr>
          </thead>
          <tbody>
            {groupModules(modules).map((group, index) => (
              <tr key={index}>
                <th scope="row">
                  <code>{group.pattern}</code>
                  {group.layers !== undefined && (
                    <span class="row-note">{t("inLayers", { layers: group.layers })}</span>
                  )}
                </th>
                <td class="number">{formatCount(group.count)}</td>
                <td>
                  <code>{group.operator}</code>
                  {group.rule !== "" && (
                    <span class="row-note">
                      <code>{group.rule.replace(/: rule \d+$/, "")}</code>
                    </span>
                  )}
                </td>
                <td>
                  <code>{group.device}</code>
                </td>
                <td>
                  <code>{group.types.join(", ")}</code>
                  {group.packed && " "}
                  {group.packed && <span class="tag">{t("packed")}</span>}
                </td>
                <td class="number">{formatBytes(group.bytes)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  )
}

function Devices({ modules }: { modules: readonly ModuleEntry[] }): JSX.Element {
  const devices = bytesByDevice(modules)
  const total = devices.reduce((sum, [, bytes]) => sum + bytes, 0)
  return (
    <ul class="bars" aria-label={t("byDevice")}>
      {devices.map(([device, bytes]) => {
        const n = total === 0 ? 0 : Math.round((bytes / total) * 100)
        const words = { device, bytes: formatBytes(bytes), n }
        return (
          <li key={device}>
            <span class="bar-name">
              <code>{device}</code>
            </span>
            <meter min={0} max={100} value={n} aria-label={t("byDeviceLabel", words)} />
            <span class="bar-value">
              {formatBytes(bytes)} · {n} %
            </span>
          </li>
        )
      })}
    </ul>
  )
}
