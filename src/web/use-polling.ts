import { useEffect, useRef } from "preact/hooks"

/**
 * Calls `ask` now and then again `ms` after each answer, while the component is there and the page is seen. What `ask` returns
 * is not used; it must not fail.
 */
export function usePolling(ask: () => Promise<unknown>, ms: number): void {
  const latest = useRef(ask)
  latest.current = ask
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined
    let isGone = false
    let isAsking = false
    const next = async (): Promise<void> => {
      clearTimeout(timer)
      if (isGone || isAsking || document.hidden) return
      isAsking = true
      await latest.current()
      isAsking = false
      if (!isGone) timer = setTimeout(() => void next(), ms)
    }
    const onShown = (): void => void next()
    document.addEventListener("visibilitychange", onShown)
    void next()
    return () => {
      isGone = true
      clearTimeout(timer)
      document.removeEventListener("visibilitychange", onShown)
    }
  }, [ms])
}
